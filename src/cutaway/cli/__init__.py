"""One thin module a command: flags to settings, a call, and what the user sees."""
