-- DataCrumbs: the tasks of a traced job load the client library, by which they join the run.
--
-- A file of <sysconfdir>/flux/shell/lua.d. An error in it would end the job, so none leaves it.
-- Processes of an instance started by `flux batch` or `flux alloc` inherit the environment: all
-- that runs inside the allocation joins its run, and jobs inside have none of their own.

-- these are what an installation changes
local library = "/opt/datacrumbs/lib/datacrumbs/libdatacrumbs_client.so"
local run_dir = "/run/datacrumbs" -- as run_dir of system.yaml

local function exists (path)
    local file = io.open (path, "r")
    if file then file:close () end
    return file ~= nil
end

local function asked (jobspec)
    local value = jobspec.attributes.system.datacrumbs
    return type (value) == "table" and value.enable == "yes"
end

-- as datacrumbs_wrap does: after what is preloaded already, and once
local function preload ()
    local before = shell.getenv ("LD_PRELOAD") or ""
    for entry in before:gmatch ("[^: ]+") do
        if entry == library then return end
    end
    shell.setenv ("LD_PRELOAD", before == "" and library or before .. ":" .. library)
    local sanitizer = shell.getenv ("ASAN_OPTIONS") or ""
    if not sanitizer:find ("verify_asan_link_order", 1, true) then
        local join = sanitizer == "" and "" or sanitizer .. ":"
        shell.setenv ("ASAN_OPTIONS", join .. "verify_asan_link_order=0")
    end
end

local function join_run ()
    if not asked (shell.info.jobspec) then return end
    local id = shell.getenv ("FLUX_JOB_ID"):gsub ("^\198\146", "f")
    local run = run_dir .. "/datacrumbs-" .. id
    -- not traced, and told so by the prolog; a run of this id may go on that is not the job's
    if exists (run .. ".failed") then return end
    if exists (run .. ".ready") then
        shell.setenv ("DATACRUMBS_RUN_ID", id)
        preload ()
    elseif not exists (run .. ".env") then
        -- nobody tried: the prolog would have said so itself
        shell.log ("datacrumbs: not traced here: no prolog of this Flux instance starts tracing")
    end
end

plugin.register {
    name = "datacrumbs",
    handlers = {
        {
            topic = "shell.init",
            fn = function ()
                local done, problem = pcall (join_run)
                if not done then
                    shell.log ("datacrumbs: not traced here: " .. tostring (problem))
                end
            end
        }
    }
}
