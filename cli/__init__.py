"""The programs labelstore and trainer: arguments in, library calls, one line per error out."""
