"""What a run, or several together, look like: plots, pages and tables read from run folders. Nothing imports torch."""
