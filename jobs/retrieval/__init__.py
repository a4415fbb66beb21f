"""Image–text retrieval: pictures and their captions, found from one another."""
