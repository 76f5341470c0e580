"""HTTP: the application around the routes, the routes, their document, and the page at /."""
