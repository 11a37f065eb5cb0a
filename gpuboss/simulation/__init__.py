"""What the scheduler would decide: the core, run in virtual time over requests that were made up or recorded."""
