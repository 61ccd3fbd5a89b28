"""Traffic controller: who gets which version, decided by pure functions over the snapshot."""
