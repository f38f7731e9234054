"""The service behind proxies and under another server."""
