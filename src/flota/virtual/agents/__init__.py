"""Update agents: mirrors of the clients that devices in the field carry."""
