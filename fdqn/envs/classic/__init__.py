"""Classic control tasks and catch as pure functions, one environment a file."""
