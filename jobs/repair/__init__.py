"""What a store gets back with its teachers: repair, fidelity, a recorded teacher built again."""
