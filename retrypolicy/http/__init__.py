"""HTTP facts without an HTTP library: methods, statuses, and the server's own hints about waiting."""
