"""A merged model made ready to be stored: what all of its numbers go through before."""
