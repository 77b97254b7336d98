//! Open or closed: keys, scopes, projects, tokens, origins, TLS, limits at the door.
