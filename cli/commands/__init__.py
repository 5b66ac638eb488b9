"""One module per command, with a function of the module's name; imported when the command is called."""
