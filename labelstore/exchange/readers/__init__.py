"""Label files of other projects, one module per format, and what several formats share."""
