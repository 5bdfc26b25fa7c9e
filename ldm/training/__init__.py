"""From a command line to a finished run: options, configuration, Lightning trainer, what a run leaves behind."""
