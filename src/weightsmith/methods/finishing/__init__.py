"""What a merged model goes through before it is stored."""
