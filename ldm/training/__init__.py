"""From a command line to a finished run and what it leaves behind."""
