"""The gateway. Empty until the gateway issue."""
