"""Seeds that broke the promise once, and why.

A seed is the same run only as long as the simulator draws as it did then, so that each cause has a test of its own too.
"""

FOUND: dict[int, str] = {
    18: "what the leader wrote before its next beat hid that the log before it was emptied",
    24: "the same, and the next leader could not read what was left",
    70: "the same: grants on devices that the new log did not know",
    80: "two failovers: an older name of the log was taken for a newer one",
    107: "the same",
    139: "a client released what it stopped relying on before its user had unloaded",
    452: "the server's clock went back, and a session that died then lived on until the clock was there again",
    487: "the same",
    136: "a client that woke up said again, with all else, releases of what its user had not unloaded yet",
    313: "an emptied log that only its snapshot remembered: no scheduler would lead it",
    331: "the log was emptied between what a standby read and its claim, which looked at the leader alone",
    359: "after a failover a scheduler led that was away while another one did, which knew, and stood by",
    419: "the server's clock was put back and its log lost: what was reasserted ended by the clock that was lost",
    507: "the same",
    639: "a leader that stood still wrote what it had decided into an emptied log, which nobody would lead then",
    10023: "a tick that the lost part of the log had decided was decided again behind the loss, and granted at once",
    40331: "a jump of the clock that stood undecided was told again by the next leader: quarantine took longer",
    40174: "the same",
    100441: "who had not seen the last leader decide anything led its log, which was emptied then, as if it were new",
    105859: "a failover between what a standby saw of the leader and what it read of the log, which it called damaged",
}
