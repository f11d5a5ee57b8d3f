"""From predictions to knowledge: protocols, metrics, figures, reports."""
