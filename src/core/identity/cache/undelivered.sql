-- Reads changes that Redis has not taken, oldest first, 500 at most. Those younger than four seconds are still being
-- delivered by the process that committed them. A refusal that a later change overtook is delivered as a mere change:
-- its tombstone would refuse a key that is valid again.
select current_setting('transaction_read_only')::boolean as read_only,
       o.id as outbox, o.key_hash, o.ver, o.op = 1 and o.ver = k.ver as refused,
       extract(epoch from now() - o.at)::float8 as age_s
from cache_outbox o
join api_key k using (key_hash)
where o.done_at is null and o.at < now() - interval '4 seconds'
order by o.id
limit 500
