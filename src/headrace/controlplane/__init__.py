"""The control-plane process: API, store, auth, loops."""
