"""Pages and tables about runs and stores."""
