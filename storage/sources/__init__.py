"""Sources of images: folders, tars, Parquet, web servers; which files are images, and their labels."""
