"""Linux understood: snapshot columns to nodes, edges and relations."""
