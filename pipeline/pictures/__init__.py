"""Pictures of what encoders see: PCA, similarity, neighbours."""
