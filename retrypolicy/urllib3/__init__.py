"""Evidence from the wire, and the engine, for urllib3: with or without requests on top."""
