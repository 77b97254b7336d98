#!/bin/sh
# Shows that every guard is able to fail: with a safety check switched off, the tests that guard it must fail, and
# without that they must pass. Needs nothing but cargo; run it from anywhere.

set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
# `make` gives those with which it builds its tests, so that they are built once.
FEATURES=${FEATURES:-onlooker/sabotage}
# A test that waits for ever without its check has failed as well.
LIMIT=120

# check, where its test is (`gateway`, `crash`, `bin` or `lib`), the test's name
TABLE='
redactor         gateway  secrecy::no_canary_shows_anywhere_after_it_was_echoed_in_every_form
redactor         crash    outgoing::no_byte_that_leaves_the_gateway_is_a_secret
redactor         lib      redact::tests::every_encoding_of_a_value_goes
recheck          gateway  reaching::a_watcher_that_comes_between_decision_and_sending_holds_the_notice_back
recheck          lib      outbox::tests::a_notice_that_is_no_longer_wanted_at_sending_is_not_sent
recheck          lib      session::simulation::no_kept_seed_breaks_a_promise
grace_origin     lib      session::simulation::no_kept_seed_breaks_a_promise
key_revision     lib      session::simulation::no_kept_seed_breaks_a_promise
recheck          lib      reach_out::model::tests::whoever_has_the_question_is_not_told_it
grace_origin     lib      reach_out::model::tests::however_two_people_come_and_go_nobody_is_missed_and_nobody_nagged
key_revision     lib      reach_out::model::tests::of_two_revisions_each_is_asked_answered_or_closed_once
one_repeat       lib      reach_out::model::tests::whatever_comes_of_sending_somebody_is_told_or_it_is_counted
compare_and_set  lib      reach_out::model::tests::of_two_revisions_each_is_asked_answered_or_closed_once
compare_and_set  gateway  answers::of_two_answers_at_the_same_instant_exactly_one_wins
compare_and_set  gateway  engine::memory::exactly_one_writer_wins_each_version
compare_and_set  lib      outbox::tests::two_outboxes_that_race_on_one_key_send_once
fence            gateway  runtimes::events_of_a_runtime_that_was_replaced_are_refused_as_fenced
fence            gateway  engine::memory::a_lower_term_is_fenced_and_changes_nothing
byte_bound       gateway  engine::memory::a_log_is_trimmed_by_bytes
byte_bound       gateway  slow::a_subscriber_that_never_reads_costs_no_memory_and_hurts_nobody
address_check    gateway  task_webhooks::none_goes_to_this_machine_unless_it_is_allowed
log_cap          bin      cli::log::tests::libraries_stay_at_info_whatever_the_filter_asks_for
'

said=$(mktemp)
trap 'rm -f "$said"' EXIT
unset ONLOOKER_SABOTAGE

echo "==> building with the feature sabotage"
if ! $CARGO test --workspace --features "$FEATURES" --lib --bins --test gateway --test crash --no-run >"$said" 2>&1
then
    cat "$said"
    exit 1
fi
binary_of() {
    sed -n "s|^ *Executable $1 (\(.*\))\$|\1|p" "$said"
}
gateway=$(binary_of tests/gateway/main.rs)
crash=$(binary_of tests/crash/main.rs)
bin=$(binary_of 'unittests src/main.rs' | grep '/onlooker-[0-9a-f]*$')
lib=$(binary_of 'unittests src/lib.rs' | grep '/onlooker-[0-9a-f]*$')

# run SWITCH BINARY NAME: runs one test; its words are left in $said.
run() {
    ONLOOKER_SABOTAGE=$1 timeout "$LIMIT" "$2" --exact "$3" >"$said" 2>&1
}

wrong=0
complain() {
    echo "    WRONG: $1"
    wrong=$((wrong + 1))
}

judge() {
    check=$1 name=$3
    case $2 in gateway) binary=$gateway ;; crash) binary=$crash ;; bin) binary=$bin ;; *) binary=$lib ;; esac
    echo "==> $check: $name"
    if ! run '' "$binary" "$name"; then
        tail -n 20 "$said"
        complain "it fails although every check is on"
    elif ! grep -q '^test result: ok\. 1 passed' "$said"; then
        complain "there is no such test"
    elif run "$check" "$binary" "$name"; then
        complain "it passes although $check is off"
    elif grep -q 'ONLOOKER_SABOTAGE names no guard' "$said"; then
        complain "there is no check of that name"
    else
        echo "    fails without it, as it should"
    fi
}

while read -r check where name; do
    [ -z "$check" ] || judge "$check" "$where" "$name"
done <<TABLE
$TABLE
TABLE

# A check that is in the source and guarded by nothing above would go unnoticed.
for check in $(sed -n 's/^ *"\([a-z_]*\)" => Guard::.*/\1/p' src/sabotage.rs); do
    echo "$TABLE" | grep -q "^$check " || complain "no test in the table guards $check"
done

if [ "$wrong" -gt 0 ]; then
    echo "==> $wrong of these guards guard nothing"
    exit 1
fi
echo "==> every guard is able to fail"
