"""For Django: settings."""
