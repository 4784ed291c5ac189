"""Models by name, their layers and state, and recorded changes of their structure."""
