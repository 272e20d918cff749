-- Lists a tenant's jobs, newest first. `page_bytes` is the estimated size of the answer up to the row's end.
-- The innermost query reads the page, the next one sums the sizes of its items (at most 512 bytes besides steps and
-- error), and the outer one drops what follows the first item that is too many. An item larger than a page counts as a
-- whole page, so that the item after it is returned too and shows that there is a next page.
-- $1 tenant uuid
-- $2 status text
-- $3 kind text
-- $4 instance uuid
-- $5 before uuid
-- $6 row_limit int8
-- $7 page_bytes_max int4
select id, kind, instance_id, status, attempt, max_attempts, crashes, run_at, steps, error, retry_of, created_at,
  started_at, finished_at, page_bytes
from (
  select id, kind, instance_id, status, attempt, max_attempts, crashes, run_at, steps, error, retry_of, created_at,
    started_at, finished_at, bytes, sum(bytes) over (order by id desc) as page_bytes
  from (
    select id, kind, instance_id, status, attempt, max_attempts, crashes, run_at, steps, error, retry_of, created_at,
      started_at, finished_at,
      least(512 + octet_length(steps::text) + coalesce(octet_length(error::text), 0), $7) as bytes
    from jobs
    where tenant_id = $1 and id < $5 and ($2::text is null or status = $2) and ($3::text is null or kind = $3)
      and ($4::uuid is null or instance_id = $4)
    order by id desc limit $6) page) sized
where page_bytes - bytes <= $7 order by id desc
