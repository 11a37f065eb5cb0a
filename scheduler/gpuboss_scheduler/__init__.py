"""The scheduler: the hands that read the log, let the core decide, and write down what it decided."""
