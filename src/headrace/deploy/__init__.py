"""Deployment manager: desired state, reconciliation, fleet backends."""
