"""The fleet on Ray. Ray places replicas, tells of nodes, and starts nothing again; no request goes through it."""
