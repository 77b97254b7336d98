//! One suite that every engine passes: the contract of `onlooker::engine`.
