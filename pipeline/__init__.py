"""The user's surface: the command line, recipes, plans, reports and the demo."""
