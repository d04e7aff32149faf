//! How much may be under way between two ranks.

/// What may be under way from one rank to another before a send waits: few messages of any size, or many of few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Messages of any size.
    pub messages: u64,
    /// Bytes of however many messages.
    pub bytes: u64,
}

impl Room {
    /// What the executor gives and plans are verified with: 256 messages, or 256 MiB.
    pub const CHANNEL: Room = Room { messages: 256, bytes: 256 << 20 };

    /// A rank cannot wait for itself.
    pub const OWN: Room = Room { messages: u64::MAX, bytes: u64::MAX };
}

/// What is under way from one rank to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnderWay {
    n_messages: u64,
    n_bytes: u64,
}

impl UnderWay {
    /// Adds a message if there is room for it; whether there was.
    pub fn add(&mut self, bytes: u64, room: Room) -> bool {
        let n_bytes = self.n_bytes.saturating_add(bytes);
        let has_room = self.n_messages < room.messages || n_bytes <= room.bytes;
        if has_room {
            *self = UnderWay { n_messages: self.n_messages + 1, n_bytes };
        }
        has_room
    }

    /// Takes a message away that was added.
    pub fn remove(&mut self, bytes: u64) {
        self.n_messages = self.n_messages.saturating_sub(1);
        self.n_bytes = self.n_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_messages_of_any_size_have_room_and_many_small_ones() {
        let room = Room { messages: 2, bytes: 10 };
        let mut channel = UnderWay::default();
        assert_eq!([100, 1, 1].map(|bytes| channel.add(bytes, room)), [true, true, false]);
        channel.remove(100);
        assert_eq!([8, 1, 1].map(|bytes| channel.add(bytes, room)), [true, true, false]);
    }
}
