"""What values of a program look like on the user's data, as statistics that fit in little memory."""
