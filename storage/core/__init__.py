"""What every other wing of the store uses: errors, identities, URLs, choosing by name."""
