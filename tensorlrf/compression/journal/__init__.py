"""What has been measured of a model, kept for a call that is made again."""
