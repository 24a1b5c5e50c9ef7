"""The comparison of models as a page to read and figures for machines, made from result files alone."""
