//! Tier: root. The box's NICs: the next hop of steered frames, and the findings of the doctor.

mod doctor;
mod next_hop;
