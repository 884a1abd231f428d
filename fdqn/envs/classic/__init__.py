"""Classic control tasks and catch as pure functions, one module each."""
