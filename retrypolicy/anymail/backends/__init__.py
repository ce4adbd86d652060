"""Ready backends: one module for each requests-based provider of Anymail, each with an `EmailBackend`."""
