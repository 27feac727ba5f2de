"""What can be asked of the gateway over HTTP, a file an idea. Each ends in its ROUTES; gateway.py adds them up."""
