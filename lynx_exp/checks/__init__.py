"""Whether what is on disk holds together: rules over the files of cells, and over the cells of a study. No model."""
