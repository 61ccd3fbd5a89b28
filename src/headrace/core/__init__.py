"""Names, specs, wire frames, errors: values that every part shares. Imports nothing else of ours."""
