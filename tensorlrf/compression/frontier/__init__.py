"""What a model of every size is worth: plans over shares, judged by a metric of the user's own."""
