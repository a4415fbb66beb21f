"""Where images come from: folders, tars, Parquet, the web; what is an image, and its label."""
