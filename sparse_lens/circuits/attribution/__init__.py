"""Attribution that stands on its own: nodes, edges, one prompt."""
