//! Groups on one machine: who owns which partition.
//!
//! Rebalancing is cooperative, as on Kafka: every change of membership computes a *target* for each
//! member; a member gives up what is no longer its target in its own next poll, and takes what is
//! its target once nobody owns it. So a partition never has two owners, and partitions that stay
//! where they are never stop.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::TopicPartition;

/// Names a member within its group; never used twice.
pub(super) type MemberId = u64;

#[derive(Default)]
struct Member {
    topics: BTreeSet<String>,
    target: BTreeSet<TopicPartition>,
    owned: BTreeSet<TopicPartition>,
}

/// A group and its members.
#[derive(Default)]
pub(super) struct Group {
    members: BTreeMap<MemberId, Member>,
    joined: MemberId,
}

/// What a member has to do before it reads on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Duty {
    pub(super) give: Vec<TopicPartition>,
    pub(super) take: Vec<TopicPartition>,
}

impl Duty {
    pub(super) const fn is_empty(&self) -> bool {
        self.give.is_empty() && self.take.is_empty()
    }
}

impl Group {
    /// Adds a member that reads `topics`; `partitions` lists all partitions of all topics.
    pub(super) fn join(&mut self, topics: BTreeSet<String>, partitions: &[TopicPartition]) -> MemberId {
        self.joined += 1;
        self.members.insert(self.joined, Member { topics, ..Member::default() });
        self.deal(partitions);
        self.joined
    }

    /// Removes a member, alive or not; what it owned is free at once.
    pub(super) fn leave(&mut self, member: MemberId, partitions: &[TopicPartition]) {
        self.members.remove(&member);
        self.deal(partitions);
    }

    pub(super) fn members(&self) -> Vec<MemberId> {
        self.members.keys().copied().collect()
    }

    pub(super) fn has(&self, member: MemberId) -> bool {
        self.members.contains_key(&member)
    }

    pub(super) fn owns(&self, member: MemberId, partition: &TopicPartition) -> bool {
        self.members.get(&member).is_some_and(|it| it.owned.contains(partition))
    }

    pub(super) fn duty(&self, member: MemberId) -> Duty {
        let Some(it) = self.members.get(&member) else { return Duty::default() };
        let free = |partition: &TopicPartition| !self.members.values().any(|other| other.owned.contains(partition));
        Duty {
            give: it.owned.difference(&it.target).cloned().collect(),
            take: it.target.difference(&it.owned).filter(|partition| free(partition)).cloned().collect(),
        }
    }

    pub(super) fn gave(&mut self, member: MemberId, partitions: &[TopicPartition]) {
        if let Some(it) = self.members.get_mut(&member) {
            it.owned.retain(|owned| !partitions.contains(owned));
        }
    }

    pub(super) fn took(&mut self, member: MemberId, partitions: &[TopicPartition]) {
        if let Some(it) = self.members.get_mut(&member) {
            it.owned.extend(partitions.iter().cloned());
        }
    }

    /// Deals each topic's partitions evenly among the members that read it; members keep what they
    /// own as far as their share goes.
    pub(super) fn deal(&mut self, partitions: &[TopicPartition]) {
        let mut topics: BTreeMap<&str, Vec<&TopicPartition>> = BTreeMap::new();
        for partition in partitions {
            topics.entry(&partition.topic).or_default().push(partition);
        }
        for member in self.members.values_mut() {
            member.target.clear();
        }
        for (topic, mut free) in topics {
            let mut readers: Vec<(Reverse<usize>, MemberId)> = (self.members.iter())
                .filter(|(_, member)| member.topics.contains(topic))
                .map(|(id, member)| (Reverse(member.owned.iter().filter(|it| *it.topic == *topic).count()), *id))
                .collect();
            readers.sort_unstable();
            let count = readers.len();
            let shares: Vec<(MemberId, usize)> = (readers.into_iter().enumerate())
                .map(|(index, (_, id))| (id, free.len() / count + usize::from(index < free.len() % count)))
                .collect();
            for (id, share) in &shares {
                let Some(member) = self.members.get_mut(id) else { continue };
                let kept: Vec<_> = free.iter().filter(|it| member.owned.contains(**it)).take(*share).copied().collect();
                free.retain(|partition| !kept.contains(partition));
                member.target.extend(kept.into_iter().cloned());
            }
            let mut free = free.into_iter();
            for (id, share) in shares {
                let Some(member) = self.members.get_mut(&id) else { continue };
                let had = member.target.iter().filter(|it| *it.topic == *topic).count();
                member.target.extend(free.by_ref().take(share - had).cloned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(topic: &str, count: u32) -> Vec<TopicPartition> {
        (0..count).map(|partition| TopicPartition { topic: topic.into(), partition }).collect()
    }

    fn settle(group: &mut Group) -> Vec<String> {
        for _ in 0..2 {
            for id in group.members() {
                let Duty { give, .. } = group.duty(id);
                group.gave(id, &give);
                let Duty { take, .. } = group.duty(id);
                group.took(id, &take);
            }
        }
        let owned = |it: &Member| it.owned.iter().map(|it| it.partition.to_string()).collect::<Vec<_>>().join(",");
        group.members.iter().map(|(id, it)| format!("{id}:{}", owned(it))).collect()
    }

    #[test]
    fn a_partition_is_free_before_it_is_taken() {
        let (all, topics) = (partitions("t", 2), BTreeSet::from(["t".to_owned()]));
        let mut group = Group::default();
        let first = group.join(topics.clone(), &all);
        group.took(first, &all);
        let second = group.join(topics, &all);
        assert_eq!(group.duty(second), Duty::default());
        assert_eq!(group.duty(first).give, all[1..]);
        group.gave(first, &all[1..]);
        assert_eq!(group.duty(second).take, all[1..]);
    }

    #[test]
    fn shares_are_even_and_members_keep_what_they_can() {
        let (all, topics) = (partitions("t", 5), BTreeSet::from(["t".to_owned()]));
        let mut group = Group::default();
        group.join(topics.clone(), &all);
        assert_eq!(settle(&mut group), ["1:0,1,2,3,4"]);
        group.join(topics.clone(), &all);
        assert_eq!(settle(&mut group), ["1:0,1,2", "2:3,4"]);
        group.join(topics, &all);
        assert_eq!(settle(&mut group), ["1:0,1", "2:3,4", "3:2"]);
        group.leave(1, &all);
        assert_eq!(settle(&mut group), ["2:0,3,4", "3:1,2"]);
    }
}
