"""The inference router process: authenticate, admit, decide, pick a replica, answer."""
